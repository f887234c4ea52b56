"""What a run would take on other numbers of workers: its measured costs, replayed through the same scheduler."""
