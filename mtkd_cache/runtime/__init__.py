"""What the library runs on: device and processes, memory, timing."""
