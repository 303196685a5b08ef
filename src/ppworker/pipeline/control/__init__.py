"""What people do to jobs and operations, and the machinery of operations."""
