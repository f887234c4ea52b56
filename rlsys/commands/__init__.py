"""The console commands besides training; each module or folder is one command."""
