"""All that is measured in a few minutes: C{python -m benchmarks}."""

from benchmarks import gateway, idle, pipeline


def main() -> None:
    """Print the tables."""
    gateway.main()
    pipeline.main()
    idle.main()


if __name__ == "__main__":
    main()
