"""The command line: one short file a command, which parses, calls one function of the library and prints."""
