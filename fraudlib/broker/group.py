"""The embedded broker's consumer groups: who is in, who reads what, and how far each partition is committed.

As Kafka's classic protocol has it: members join, the first of them assigns, all sync. Whoever is silent for longer than
its session timeout is dropped; what comes from an earlier generation is refused, which is what fences a zombie.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

NO_ERROR: Final = 0
ILLEGAL_GENERATION: Final = 22
INCONSISTENT_PROTOCOL: Final = 23
UNKNOWN_MEMBER: Final = 25
REBALANCE: Final = 27
EMPTY, PREPARING, COMPLETING, STABLE = "empty", "preparing", "completing", "stable"
NO_OFFSET: Final = -1


@dataclass
class Joined:
    """Answer to a member that joins."""

    error: int
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    member: str = ""
    members: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class _Member:
    name: str
    session: float
    rebalance: float
    protocols: dict[str, bytes]
    deadline: float = 0.0
    joining: "asyncio.Future[Joined] | None" = None
    syncing: "asyncio.Future[tuple[int, bytes]] | None" = None
    assignment: bytes = b""

    def touch(self) -> None:
        """Still there."""
        self.deadline = time.monotonic() + self.session


class Group:
    """One consumer group.

    Attributes
    ----------
    offsets : (topic, partition) -> committed offset and its metadata.
    """

    def __init__(self) -> None:
        self.offsets: dict[tuple[str, int], tuple[int, str]] = {}
        self._state, self._generation, self._protocol, self._leader = EMPTY, 0, "", ""
        self._members: dict[str, _Member] = {}
        self._deadline = 0.0  # of the members to join again

    async def join(self, name: str, session_ms: int, rebalance_ms: int, protocols: list[tuple[str, bytes]]) -> Joined:
        """Take a member in, new where it has no name; answers when all have joined."""
        if name and name not in self._members:
            return Joined(UNKNOWN_MEMBER, member=name)
        name = name or f"member-{secrets.token_hex(8)}"
        offered = dict(protocols)
        others = [m for m in self._members.values() if m.name != name]
        if others and not set(offered).intersection(*(m.protocols for m in others)):
            return Joined(INCONSISTENT_PROTOCOL, member=name)
        member = self._members.get(name) or _Member(name, 0.0, 0.0, {})
        member.session, member.rebalance, member.protocols = session_ms / 1000, rebalance_ms / 1000, offered
        self._members[name] = member
        member.touch()
        member.joining = asyncio.get_running_loop().create_future()
        answer = member.joining
        if self._state != PREPARING:
            self._prepare()
        self._join_when_complete()
        return await answer

    async def sync(self, name: str, generation: int, assignments: list[tuple[str, bytes]]) -> tuple[int, bytes]:
        """Error code and assignment of a member; the leader brings everybody's."""
        if error := self._check(name, generation):
            return error, b""
        if self._state == PREPARING:
            return REBALANCE, b""
        member = self._members[name]
        member.touch()
        if self._state == STABLE:
            return NO_ERROR, member.assignment
        member.syncing = asyncio.get_running_loop().create_future()
        answer = member.syncing
        if name == self._leader:
            self._settle(dict(assignments))
        return await answer

    def heartbeat(self, name: str, generation: int) -> int:
        """Error code for a sign of life."""
        if error := self._check(name, generation):
            return error
        self._members[name].touch()
        return REBALANCE if self._state == PREPARING else NO_ERROR

    def leave(self, name: str) -> int:
        """Error code of a member's farewell."""
        if name not in self._members:
            return UNKNOWN_MEMBER
        self._drop([name])
        return NO_ERROR

    def commit(self, name: str, generation: int, offsets: dict[tuple[str, int], tuple[int, str]]) -> int:
        """Error code of a commit; one from outside the group is taken while the group has no members."""
        if generation < 0 and not name:
            if self._members:
                return UNKNOWN_MEMBER
        elif error := self._check(name, generation):
            return error
        elif self._state == COMPLETING:
            return REBALANCE
        else:
            self._members[name].touch()
        self.offsets |= offsets
        return NO_ERROR

    def expire(self) -> None:
        """Drop who is overdue; to be called now and then."""
        now = time.monotonic()
        if self._state == PREPARING and now > self._deadline:
            self._drop([m.name for m in self._members.values() if m.joining is None])
        self._drop([m.name for m in self._members.values() if m.joining is None and now > m.deadline])

    def _check(self, name: str, generation: int) -> int:
        if name not in self._members:
            return UNKNOWN_MEMBER
        return NO_ERROR if generation == self._generation else ILLEGAL_GENERATION

    def _prepare(self) -> None:
        self._state = PREPARING
        self._deadline = time.monotonic() + max(m.rebalance for m in self._members.values())
        for member in self._members.values():
            if member.syncing is not None and not member.syncing.done():
                member.syncing.set_result((REBALANCE, b""))
            member.syncing = None

    def _drop(self, names: list[str]) -> None:
        if not names:
            return
        for name in names:
            member = self._members.pop(name)
            if member.syncing is not None and not member.syncing.done():
                member.syncing.set_result((UNKNOWN_MEMBER, b""))
            if member.joining is not None and not member.joining.done():
                member.joining.set_result(Joined(UNKNOWN_MEMBER, member=name))
        if not self._members:
            self._state, self._leader = EMPTY, ""
            self._generation += 1
            return
        if self._state != PREPARING:
            self._prepare()
        self._join_when_complete()

    def _join_when_complete(self) -> None:
        members = list(self._members.values())
        if any(member.joining is None for member in members):
            return
        self._generation += 1
        self._state = COMPLETING
        if self._leader not in self._members:
            self._leader = members[0].name
        common = set.intersection(*(set(member.protocols) for member in members))
        self._protocol = next(name for name in self._members[self._leader].protocols if name in common)
        everybody = [(member.name, member.protocols[self._protocol]) for member in members]
        for member in members:
            member.touch()
            answer, member.joining = member.joining, None
            assert answer is not None
            if not answer.done():
                known = everybody if member.name == self._leader else []
                answer.set_result(Joined(NO_ERROR, self._generation, self._protocol, self._leader, member.name, known))

    def _settle(self, assignments: dict[str, bytes]) -> None:
        self._state = STABLE
        for member in self._members.values():
            member.assignment = assignments.get(member.name, b"")
            member.touch()
            if member.syncing is not None and not member.syncing.done():
                member.syncing.set_result((NO_ERROR, member.assignment))
            member.syncing = None
