"""Shows what the item job costs, against the same job written by hand and against the limit."""
