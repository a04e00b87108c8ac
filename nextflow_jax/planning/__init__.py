"""Planning: what a run will take on machines that are not here yet: time of a step, goodput, chip-hours."""
