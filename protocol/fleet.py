"""Fleet records: what a worker says of itself, and the snapshot a controller gives to gateways.

Routes (cluster token where one is set):
    PUT    /fleet/workers/{instance_id}   a whole `WorkerRecord`: registration and heartbeat alike
    DELETE /fleet/workers/{instance_id}   leave: a tombstone keeps late heartbeats out
    GET    /fleet?after=V&epoch=E&wait_s=S  `FleetSnapshot`; waits until its version exceeds V;
           with `&changes=true` it may hold what changed since V only; `&gateway=ID` says who
           follows the fleet, and has seen V of it
    DELETE /fleet/gateways/{id}   a gateway follows no longer
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

WorkerState: TypeAlias = Literal["starting", "ready", "draining", "failed"]
Wire: TypeAlias = Literal["native", "fastchat"]
Capability: TypeAlias = Literal["chat", "completions", "embeddings", "score"]
Feature: TypeAlias = Literal[
    "structured_outputs",
    "prompt_logprobs",
    "template_variables",
    "reasoning_effort",
    "plain_answers",
    "beam_search",
    "suffix",
]
"""What a model may lack: answers held to a grammar, log probabilities of the prompt, a chat
template with variables of its own or a switch for reasoning, answers without any reasoning, beams,
tokens that mark a gap."""


MAX_COUNTED_GATEWAYS: Final = 256
"""A worker with requests of more of them counts for none."""


Count: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Rate: TypeAlias = Annotated[float, Field(ge=0, le=1e15)]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True
    )


class ModelRecord(_Record):
    """One name that a worker serves.

    Attributes:
        name: what clients call it.
        digest: identifies weights, tokenizer, template, dtype and engine; same digest, same
            answers. Empty for a FastChat worker.
        context_length: tokens; 0 when unknown (a FastChat worker, until it is asked).
        capabilities: what it can be asked for.
        engine: which engine runs it, such as `paged`, `generate`, `encoder`, `sim`.
        features: what it has of `Feature`, perhaps more; None when that is not known.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    digest: Annotated[str, Field(max_length=128)] = ""
    context_length: Count = 0
    capabilities: tuple[Capability, ...] = ("chat", "completions", "embeddings")
    engine: Annotated[str, Field(max_length=64)] = ""
    # any name is taken: a newer worker may have features that this side does not know
    features: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)] | (
        None
    ) = None


class Load(_Record):
    """A worker's load at the time of its heartbeat.

    Attributes:
        running: sequences in the running batch. waiting: requests queued.
        waiting_tokens: prompt tokens queued and not yet prefilled.
        kv_free: share of KV blocks free, 0..1.
        prefill_tps, decode_tps: measured tokens a second, 0 when not yet measured.
        capacity: sequences that run at once.
    """

    running: Count = 0
    waiting: Count = 0
    waiting_tokens: Count = 0
    kv_free: Annotated[float, Field(ge=0, le=1)] = 1.0
    prefill_tps: Rate = 0.0
    decode_tps: Rate = 0.0
    capacity: Count = 0


class WorkerRecord(_Record):
    """All that the fleet knows of one worker process; its owner pushes it whole.

    Attributes:
        instance_id: 128 random bits in hex, one a process.
        incarnation, seq: the newer pair wins; a process that finds its address taken takes the
            other's incarnation + 1.
        address: base URL, scheme, host and port only.
        reason: why a worker has failed, for people; empty otherwise.
        engine_step: counts engine steps; it stands still when the engine is stuck.
        engine_starts: how often its engine became ready: more tell that one was restarted.
        busy: whether the engine has work: a still counter means trouble only then.
        ttl_ms: the lease it asks for; 0 takes the controller's default.
        speed, queue_length: the FastChat wire's numbers.
        serving: requests in service by the `gateway` that they name; those that are not in it have
            none. None when they are not counted.
    """

    instance_id: Annotated[str, Field(min_length=1, max_length=256)]
    incarnation: Count = 0
    seq: Count = 0
    address: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s/@?#]+$")]
    models: Annotated[tuple[ModelRecord, ...], Field(max_length=256)]
    state: WorkerState = "ready"
    reason: Annotated[str, Field(max_length=256)] = ""
    load: Load = Load()
    engine_step: Count = 0
    engine_starts: Count = 0
    busy: bool = False
    ttl_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0
    wire: Wire = "native"
    speed: Rate = 1.0
    queue_length: Count = 0
    multimodal: bool = False
    serving: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Count],
            Field(max_length=MAX_COUNTED_GATEWAYS),
        ]
        | None
    ) = None

    @property
    def short_id(self) -> str:
        """The instance id as people and clients see it."""
        return self.instance_id.removeprefix("fastchat-")[:8]

    def model(self, name: str) -> ModelRecord | None:
        """The record of the model `name`, if this worker serves it."""
        return next((model for model in self.models if model.name == name), None)


class HeartbeatAnswer(_Record):
    """A controller's answer to a record.

    Attributes:
        accepted: whether the record is now the stored one.
        stale: whether a newer (incarnation, seq) was stored already.
        incarnation: the stored one; on a conflict (409) the newcomer takes it + 1.
        lease_ms: how long the record lives without a heartbeat.
        acknowledged: to a draining worker only: whether every gateway that follows this controller
            knows that it drains.
        successors: to a draining worker only: how many others could go on with its answers.
    """

    accepted: bool
    stale: bool = False
    incarnation: int = 0
    lease_ms: int = 0
    acknowledged: bool = False
    successors: int = 0


class DrainRequest(_Record):
    """Asks a worker to drain and to stop; asked again, how it gets on.

    Attributes:
        instance_id: fencing: another process at the address refuses it.
        grace_s: seconds that running requests get before they are handed over to other workers;
            None leaves it as it is. 0 hands them over at once.
    """

    instance_id: Annotated[str, Field(min_length=1, max_length=256)]
    grace_s: Rate | None = None


class DrainStatus(_Record):
    """How a drain gets on.

    Attributes:
        began: whether this request began it; else it was draining before.
        requests: requests that still run there.
    """

    began: bool
    requests: int


class FleetQuery(_Record):
    """What somebody asks of the fleet.

    Attributes:
        after, epoch: the version that is known, and where it is from.
        wait_s: seconds to wait for a later one; a controller may answer sooner.
        changes: whether the answer may hold what changed since `after` only.
        gateway: who follows the fleet, and has seen `after` of it; empty: nobody.
    """

    after: Annotated[int, Field(ge=0)] = 0
    epoch: Annotated[str, Field(max_length=128)] = ""
    wait_s: Annotated[float, Field(ge=0)] = 0.0
    changes: bool = False
    gateway: Annotated[str, Field(max_length=64)] = ""


class FleetSnapshot(_Record):
    """What a controller knows.

    Attributes:
        epoch: random, one a controller process: a version means nothing in another epoch.
        version: grows with every change.
        complete: False while a restarted controller is warming up: gateways add from it and
            remove nothing because of it.
        left: instance ids with a tombstone.
        since: when set, `workers` are only those that were heard of since that version, and `gone`
            names those that are no longer there; the others are as they were.
    """

    epoch: str
    version: int
    complete: bool
    workers: tuple[WorkerRecord, ...]
    left: tuple[str, ...] = ()
    since: int | None = None
    gone: tuple[str, ...] = ()

    def updated(self, later: FleetSnapshot) -> FleetSnapshot:
        """The whole snapshot that `later` stands for; records that stay are the same objects."""
        if later.since is None:
            return later
        workers = {worker.instance_id: worker for worker in self.workers}
        for instance_id in later.gone:
            workers.pop(instance_id, None)
        workers.update((worker.instance_id, worker) for worker in later.workers)
        return later.model_copy(
            update={"workers": tuple(workers.values()), "since": None, "gone": ()}
        )
