"""The machine: processes, devices, memory, compiling, files and folders."""
