"""What may be asked of `duologue bench`: the options of its commands, declared once. Nothing heavy is imported here."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from duologue.bench.fields import means

Mode: TypeAlias = Literal["embedded", "distributed"]


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """The system that is measured: one of its own, or a running one."""

    mode: Annotated[Mode, means("One process, or every role behind nginx on Kafka, Valkey and PostgreSQL.")] = (
        "embedded"
    )
    websocket_servers: Annotated[int, means("Processes of that role, in the distributed mode.", ge=1, le=50)] = 2
    ai_consumers: Annotated[int, means("The same.", ge=1, le=50)] = 2
    message_relays: Annotated[int, means("The same.", ge=1, le=50)] = 2
    apis: Annotated[int, means("The same.", ge=1, le=50)] = 1
    url: Annotated[str, means("A running system instead, as http://127.0.0.1:8080.")] = ""
    jwt_secret: Annotated[
        str, means("What that system verifies tokens with. Default: JWT_SECRET of the environment.")
    ] = ""
    model_url: Annotated[
        str,
        means("The `duologue mock-llm` that it asks, as http://127.0.0.1:9000: it is set as the scenario needs it."),
    ] = ""
    i_own_this_system: Annotated[bool, means("Load a system that is not on this machine.")] = False


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the scenarios have in common."""

    users: Annotated[int, means("Users.", ge=1)] = 200
    devices: Annotated[int, means("Sockets of each user; each is checked.", ge=1, le=10)] = 1
    tokens: Annotated[int, means("Tokens of a reply.", ge=1)] = 8
    tokens_per_second: Annotated[float, means("Of one reply; 0: all at once.", ge=0)] = 0
    ttft_ms: Annotated[float, means("What the model takes before its first token, in ms; it is subtracted.", ge=0)] = 0
    turns: Annotated[
        int, means("Messages of a conversation, half as many more or less, before a new one. 0: one for all.", ge=0)
    ] = 0
    reconnects_per_minute: Annotated[float, means("Sockets that are lost and come back, of all together.", ge=0)] = 0
    warm_up_seconds: Annotated[
        float,
        means("Of load before anything is measured; -1: 2, and 15 in the distributed mode, for Kafka's Java.", ge=-1),
    ] = -1
    idle_seconds: Annotated[float, means("Without load, for the CPU that it takes by itself.", ge=0)] = 3
    seed: Annotated[int, means("The same seed is the same load.")] = 1


class Messages(Load, frozen=True, kw_only=True):
    """Short messages at a steady rate: added time to the first token, ack, reply, CPU per message."""

    rate: Annotated[float, means("Messages a second.", gt=0)] = 100
    seconds: Annotated[float, means("How long.", gt=0)] = 30


class Streams(Load, frozen=True, kw_only=True):
    """Replies that stream at once: how late their pieces arrive, and what a piece costs."""

    users: Annotated[int, means("Users, and so replies at once.", ge=1)] = 500
    tokens_per_second: Annotated[float, means("Of one reply.", gt=0)] = 50
    tokens: Annotated[int, means("Tokens of a reply.", ge=1)] = 1000


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """Sockets that do nothing: memory for each, CPU of all."""

    sockets: Annotated[int, means("How many.", ge=1)] = 2000
    direct: Annotated[bool, means("All on the first websocket-server, past nginx (distributed mode).")] = False
    seconds: Annotated[float, means("How long their CPU is watched.", gt=0)] = 10
    seed: Annotated[int, means("The same seed is the same load.")] = 1


class ReconnectStorm(msgspec.Struct, frozen=True, kw_only=True):
    """All sockets are lost in one moment and come back: until when, and whether replies being written go on."""

    users: Annotated[int, means("Users.", ge=1)] = 500
    devices: Annotated[int, means("Sockets of each user.", ge=1, le=10)] = 1
    talking: Annotated[float, means("The share of users whose reply is being written.", ge=0, le=1)] = 0.2
    tokens: Annotated[int, means("Tokens of a reply.", ge=1)] = 100
    tokens_per_second: Annotated[float, means("Of one reply.", gt=0)] = 20
    storms: Annotated[int, means("How often, one after the other.", ge=1)] = 3
    seed: Annotated[int, means("The same seed is the same load.")] = 1


class History(Load, frozen=True, kw_only=True):
    """Users with 10,000 messages in a conversation beside users with 100: the cost of messages, attaching, pages."""

    users: Annotated[int, means("Users of each kind.", ge=1)] = 10
    long: Annotated[int, means("Messages in the conversations of the one kind.", ge=2)] = 10_000
    short: Annotated[int, means("Messages in those of the other.", ge=2)] = 100
    rate: Annotated[float, means("Messages a second.", gt=0)] = 20
    seconds: Annotated[float, means("How long, with each kind.", gt=0)] = 15
    attaches: Annotated[int, means("How often each socket is lost and comes back, with each kind.", ge=0)] = 10
    pages: Annotated[int, means("Pages of the history that each user reads.", ge=0)] = 10


class OneHotUser(Load, frozen=True, kw_only=True):
    """One user on many devices sends far more than others do: what the others notice."""

    rate: Annotated[float, means("Messages a second of all others together.", gt=0)] = 50
    hot_rate: Annotated[float, means("Messages a second of the one.", gt=0)] = 100
    hot_devices: Annotated[int, means("Sockets of the one.", ge=1, le=10)] = 5
    seconds: Annotated[float, means("How long, first without and then with the one.", gt=0)] = 15


class Sustained(Load, frozen=True, kw_only=True):
    """The highest rate that is answered as it comes: steps up, then between what held and what did not."""

    users: Annotated[int, means("Users.", ge=1)] = 400
    start: Annotated[float, means("Messages a second of the first step.", gt=0)] = 200
    step: Annotated[float, means("So many more in each next one.", gt=0)] = 100
    resolution: Annotated[float, means("As near as this it is found.", gt=0)] = 25
    bound_ms: Annotated[float, means("What p99 of the added time to the first token may be.", gt=0)] = 1000
    seconds: Annotated[float, means("How long each step is.", gt=0)] = 10


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Killed in the middle of replies and started again: how long until they go on."""

    users: Annotated[int, means("Users.", ge=1)] = 50
    seed: Annotated[int, means("Kept with the report.")] = 1


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """Many times more messages than a slow model sustains: what is refused and how fast, and what it does to memory."""

    times: Annotated[float, means("How many times more.", gt=1)] = 10
    users: Annotated[int, means("Users.", ge=1)] = 400
    seconds: Annotated[float, means("How long.", gt=0)] = 60
    seed: Annotated[int, means("The same seed is the same load.")] = 1


Asked: TypeAlias = Messages | Streams | Idle | ReconnectStorm | History | OneHotUser | Sustained | Restart | Overload

SCENARIOS: dict[str, type[Asked]] = {
    "messages": Messages,
    "streams": Streams,
    "idle": Idle,
    "reconnect-storm": ReconnectStorm,
    "history": History,
    "one-hot-user": OneHotUser,
    "sustained": Sustained,
    "restart": Restart,
    "overload": Overload,
}
"""The scenarios by the names of their commands."""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the report."""

    report: Annotated[str, means("Folder for the report as JSON and as a page.")] = ""
    json: Annotated[bool, means("Print JSON instead of tables.")] = False


def parameters(asked: msgspec.Struct) -> dict[str, Any]:
    """Return the options of a scenario or a system with their values; the secret is not among them."""
    return {name: getattr(asked, name) for name in asked.__struct_fields__ if name != "jwt_secret"}


def arguments(scenario: str, asked: Asked, where: Where) -> str:
    """Return the command line that makes the same run again, without the secret."""
    words = ["duologue bench", scenario]
    for struct in (where, asked):
        defaults = type(struct)()
        for name, value in parameters(struct).items():
            if value != getattr(defaults, name):
                option = "--" + name.replace("_", "-")
                words.append(
                    option if value is True else f"{option} {value:g}" if _is_number(value) else f"{option} {value}"
                )
    return " ".join(words)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
