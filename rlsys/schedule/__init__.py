"""What asynchronous training samples, where, and what each step trains on: no Ray, no threads, no clock."""
