"""What a person touches: the API, capture and the command line."""
