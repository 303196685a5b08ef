"""What people change: items, annotations, their review and their states."""
