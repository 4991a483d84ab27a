"""Lifecycle: the drain of a server, and the migration of its phones to another server."""

from domaeka.gateway.lifecycle.drain import DrainReport as DrainReport
from domaeka.gateway.lifecycle.migration import MigrationPlan as MigrationPlan
from domaeka.gateway.lifecycle.migration import MigrationRefused as MigrationRefused
from domaeka.gateway.lifecycle.migration import MigrationReport as MigrationReport
