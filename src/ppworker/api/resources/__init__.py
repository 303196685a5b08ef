"""One file per resource of the SeeMe contract, and of what stands beside it."""
