"""The server: its parts assembled, started, operated and stopped."""

from domaeka.server.assembly import Platform as Platform
from domaeka.server.assembly import assemble as assemble
from domaeka.server.fatal import EXIT_CANNOT_START as EXIT_CANNOT_START
from domaeka.server.preflight import acting_as as acting_as
from domaeka.server.preflight import check as check
from domaeka.server.preflight import check_pidfile as check_pidfile
from domaeka.server.preflight import database_address as database_address
from domaeka.server.preflight import give_back_memory as give_back_memory
from domaeka.server.preflight import make_database_files as make_database_files
from domaeka.server.preflight import open_state as open_state
from domaeka.server.service import GC_THRESHOLDS as GC_THRESHOLDS
from domaeka.server.service import GatewayService as GatewayService
