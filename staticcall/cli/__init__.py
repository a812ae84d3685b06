"""The command line: options become a request to the pipeline, errors an exit code. One file per command."""
