"""All that is measured in a few minutes: C{python -m benchmarks}."""

from benchmarks import compression, gateway, idle, pipeline, scrape


def main() -> None:
    """Print the tables."""
    gateway.main()
    pipeline.main()
    compression.main()
    scrape.main()
    idle.main()


if __name__ == "__main__":
    main()
