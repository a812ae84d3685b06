"""What a release is made of, tried from end to end: `python -m release`, which tags nothing and uploads nothing."""
