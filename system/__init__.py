"""The machine around the program: files, locks, signals, processes, console, exits; knows no subject."""
