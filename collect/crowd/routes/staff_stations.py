"""For operators: stations, how they are, who may use them, and what pairs them."""

from __future__ import annotations

from typing import Annotated, Literal

import segno
from fastapi import APIRouter, Form, Request
from sqlalchemy import select
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from collect.crowd import leases, pairing, plays, queue
from collect.crowd.deps import CurrentOperator, CurrentSite, Db
from collect.crowd.names import public_name
from collect.crowd.routes.staff_people import Id
from collect.crowd.tables import AuditEntry, Participant, Station
from collect.crowd.templating import render
from robot_stack.errors import ConfigError

__all__ = ["router"]

router = APIRouter()

Name = Annotated[str, Form(min_length=1, max_length=64)]
PHASES = frozenset({"idle", "homing", "tutorial", "playing", "lowering", "fault"})


@router.get("/staff/stations")
def stations_page(request: Request, db: Db, _: CurrentOperator) -> Response:
    """Every station: what its agent last said, whose turn it is, how many wait."""
    return _page(request, db)


@router.post("/staff/stations/code")
def pairing_code(
    request: Request,
    site: CurrentSite,
    staff: CurrentOperator,
    name: Name,
    kind: Annotated[Literal["agent", "kiosk"], Form()],
) -> Response:
    """A code for an agent or a kiosk, shown this once."""
    try:
        with site.database.begin() as tx:
            code = pairing.new_code(tx, site.key, name.strip(), kind)
            tx.add(
                AuditEntry(
                    staff_id=staff.id,
                    action="pairing code",
                    subject=name.strip(),
                    detail={"kind": kind},
                )
            )
    except ConfigError:
        return _page(request, site.database, problem="name", status=422)
    # The code stands behind '#': a fragment is in no log.
    where = f"{site.config.origin}/pair#{code}"
    return render(
        request,
        "staff/code.html",
        station=name.strip(),
        kind=kind,
        code=code,
        qr=segno.make(where, error="m").svg_data_uri(scale=6, border=3),
        minutes=int(pairing.LIFETIME.total_seconds() // 60),
    )


@router.post("/staff/stations/{station_id}")
def change_station(
    db: Db,
    staff: CurrentOperator,
    station_id: Id,
    act: Annotated[Literal["close", "open", "end", "unpair"], Form()],
) -> Response:
    """Close a station for newcomers, open it, end the play that runs, or unpair it.

    Ending a play asks the station's agent to stop recording; the robot is the control server's.
    """
    with db.begin() as tx:
        station = tx.get(Station, station_id)
        if station is None:
            raise HTTPException(404, "there is no such station")
        if act in ("close", "open"):
            station.closed = act == "close"
        elif act == "unpair":
            pairing.unpair(tx, station)
        elif (play := leases.running(tx, station)) is not None:
            plays.finish(tx, play, by="staff")
        tx.add(AuditEntry(staff_id=staff.id, action=f"station {act}", subject=station.name))
    return RedirectResponse("/staff/stations", status_code=303)


def _page(request: Request, db: Db, problem: str | None = None, status: int = 200) -> Response:
    with db.read() as tx:
        rows = []
        for station in tx.scalars(select(Station).order_by(Station.name)):
            lease = leases.holder(tx, station)
            who = None if lease is None else tx.get(Participant, lease.participant_id)
            phase = station.state.get("phase")
            rows.append(
                {
                    "station": station,
                    "online": leases.online(station),
                    "phase": phase if phase in PHASES else None,
                    "fault": str(station.state.get("fault") or "")[:200],
                    "unknown": int(station.state.get("unknown") or 0),
                    "who": None if who is None else public_name(who),
                    "running": leases.running(tx, station),
                    "queue": queue.length(tx, station),
                }
            )
        return render(request, "staff/stations.html", status, rows=rows, problem=problem)
