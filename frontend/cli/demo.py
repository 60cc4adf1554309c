"""``planish demo``."""
def demo() -> None:
    """later"""
