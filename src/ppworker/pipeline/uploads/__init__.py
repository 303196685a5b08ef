"""Files and texts become items with their jobs."""
