"""Reports for people: one HTML file each, which holds everything it shows."""
