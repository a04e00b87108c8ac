"""Training: one loop for every kind of model; the kind only chooses the Task (task.py) that the loop drives."""
