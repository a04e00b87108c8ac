"""Data: pictures and documents, their extraction to shards, and the plan and pipeline that batch them."""
