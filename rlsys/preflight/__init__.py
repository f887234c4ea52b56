"""Everything that is checked and prepared before Ray starts; nothing here starts a process."""
