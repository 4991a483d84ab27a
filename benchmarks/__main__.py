"""All that is measured in a few minutes: C{python -m benchmarks}."""

from benchmarks import compression, gateway, idle, pipeline, scrape, slow


def main() -> None:
    """Print the tables."""
    for one in (gateway, pipeline, compression, slow, scrape, idle):
        one.main()
        print(flush=True)


if __name__ == "__main__":
    main()
