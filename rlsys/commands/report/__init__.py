"""A finished or running run as one HTML file: `rlsys report`."""
