"""Find defects in industrial images by retrieval."""
