"""HTTP: health, metrics, the admin API."""
