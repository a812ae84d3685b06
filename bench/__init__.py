"""The project's figures, each measured beside a peer in the same run (`make bench`)."""
