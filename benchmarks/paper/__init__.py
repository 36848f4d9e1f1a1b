"""The paper's Tables 1 to 7, run on this code and printed next to the published numbers."""
