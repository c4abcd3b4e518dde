"""Every metric of every role, each with its meaning. `/metrics` serves them in Prometheus' text format."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SHORT: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BATCH: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)

# websocket-server
CONNECTIONS = Gauge("duologue_connections", "Open sockets of this server.")
CONNECTIONS_CLOSED = Counter(
    "duologue_connections_closed_total", "Sockets closed by this server, by close code.", ["code"]
)
FRAMES_RECEIVED = Counter("duologue_frames_received_total", "Frames from clients, by type.", ["type"])
FRAMES_REFUSED = Counter("duologue_frames_refused_total", "Error frames sent, by code.", ["code"])
MESSAGES_ACKNOWLEDGED = Counter("duologue_messages_acknowledged_total", "Messages durably on the log.")
ACK_SECONDS = Histogram("duologue_ack_seconds", "From a frame that goes on the log to its ack.", buckets=_SHORT)
DELTAS_MERGED = Counter(
    "duologue_deltas_merged_total", "Deltas joined to their neighbour in a send queue that backs up."
)
SLOW_READERS = Counter("duologue_slow_readers_total", "Sockets closed because their send queue was full.")

# delivery
REATTACHES = Counter("duologue_reattaches_total", "Sockets attached again, by reason.", ["reason"])
SUBSCRIPTIONS_LOST = Counter(
    "duologue_subscriptions_lost_total",
    "Times that this server's subscription had died silently: its sockets were sent elsewhere.",
)
APPLY_RETRIES = Counter("duologue_apply_retries_total", "Script calls for a user's records that were sent again.")
RECORDS_DROPPED = Counter("duologue_records_dropped_total", "Records that a user has had already, by kind.", ["kind"])

# ai-consumer
BATCH_MESSAGES = Histogram("duologue_store_batch_messages", "Messages stored in one transaction.", buckets=_BATCH)
STORE_SECONDS = Histogram(
    "duologue_store_seconds", "Time of one store transaction, by operation.", ["operation"], buckets=_SHORT
)
STORE_RETRIES = Counter(
    "duologue_store_retries_total", "Store transactions that were repeated after a conflict, by cause.", ["cause"]
)
PENDING_MESSAGES = Gauge("duologue_pending_messages", "Messages accepted and waiting for their turn.")
UNREAD_RECORDS = Gauge("duologue_unread_records", "Records on the log behind what was read, of this consumer.")
EXPECTED_WAIT_SECONDS = Gauge(
    "duologue_expected_wait_seconds", "What a message that comes now is expected to wait here for its reply's begin."
)
REPLIES_RUNNING = Gauge("duologue_replies_running", "Replies being generated.")
REPLIES = Counter("duologue_replies_total", "Replies that ended, by outcome.", ["outcome"])
WAIT_SECONDS = Histogram(
    "duologue_wait_seconds", "From a message's acceptance to the start of its reply.", buckets=_LONG
)
FIRST_TOKEN_SECONDS = Histogram(
    "duologue_first_token_seconds", "From the model's request to its first token.", buckets=_LONG
)
REPLY_SECONDS = Histogram("duologue_reply_seconds", "From a message's acceptance to its stored outcome.", buckets=_LONG)
MODEL_TRIES = Counter(
    "duologue_model_tries_total", "Tries at the model, by provider and how they ended.", ["provider", "cause"]
)
MODEL_SWITCHES = Counter(
    "duologue_model_switches_total",
    "Times a reply went on to another model, by why it left the one before.",
    ["reason"],
)
BREAKER_STATE = Gauge(
    "duologue_breaker_state", "The circuit breaker before a provider: 0 closed, 1 half open, 2 open.", ["provider"]
)
BREAKER_TRANSITIONS = Counter(
    "duologue_breaker_transitions_total",
    "Turns of a provider's circuit breaker, by the state it took.",
    ["provider", "state"],
)
MODEL_TOKENS = Counter("duologue_model_tokens_total", "Tokens as the provider counted them, by kind.", ["kind"])
DELTAS = Counter("duologue_deltas_total", "Pieces of replies published.")
TAKEOVERS = Counter("duologue_takeovers_total", "Unfinished replies claimed again after their worker was gone.")
FENCED = Counter("duologue_fenced_total", "Replies given up because a later attempt holds them.")
DEAD_LETTERS = Counter("duologue_dead_letters_total", "Records set aside, by topic and cause.", ["topic", "cause"])

# message-relay
RECORDS_RELAYED = Counter("duologue_records_relayed_total", "Outcomes applied to users' streams, by kind.", ["kind"])

# api
DEAD_LETTERS_HANDLED = Counter(
    "duologue_dead_letters_handled_total",
    "Dead letters that an operator replayed or dropped, by topic and action.",
    ["topic", "action"],
)

# HTTP, every role
HTTP_REQUESTS = Counter(
    "duologue_http_requests_total",
    "HTTP requests answered, by route, method and status.",
    ["route", "method", "status"],
)
HTTP_SECONDS = Histogram(
    "duologue_http_seconds", "From an HTTP request to its whole answer, by route.", ["route"], buckets=_SHORT
)

# every role
TASKS = Gauge("duologue_tasks", "Tasks of the event loop; as many as before when nothing is to be done.")
VALKEY_RESTARTS = Counter("duologue_valkey_restarts_total", "Times that the bundled Valkey ended by itself.")
COMMITS = Counter("duologue_commits_total", "Commits of consumer positions, by topic.", ["topic"])
RECORDS_MISSED = Counter(
    "duologue_records_missed_total", "Records that the log removed before they were read, by topic.", ["topic"]
)
LOOP_FAILURES = Counter("duologue_loop_failures_total", "Unexpected errors caught at a loop's edge, by loop.", ["loop"])
