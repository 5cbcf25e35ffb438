"""What the demo model knows about the three tiers: one record each, asked by aspect."""

from __future__ import annotations

from dataclasses import dataclass

ASPECTS = ("role", "port", "start", "failure", "detail", "command")


@dataclass(frozen=True)
class Tier:
    """A tier and one answer for every aspect of it."""

    name: str
    role: str
    port: str
    start: str
    failure: str
    detail: str
    command: str

    def answer(self, aspect: str) -> str:
        """The answer for one of `ASPECTS`."""
        answers = {
            "role": self.role,
            "port": self.port,
            "start": self.start,
            "failure": self.failure,
            "detail": self.detail,
            "command": self.command,
        }
        return answers[aspect]


TIERS: tuple[Tier, ...] = (
    Tier(
        name="controller",
        role=(
            "The controller is the tier that knows which workers are alive. It keeps a registry "
            "of workers and their models, kept fresh by heartbeats, and listens on port 21001."
        ),
        port="The controller listens on port 21001.",
        start="Start the controller with `python -m controller`. It listens on port 21001.",
        failure=(
            "If the controller stops, the gateway goes on serving from the last list of workers "
            "that it saw. The workers register again when the controller is back."
        ),
        detail=(
            "Every worker sends the controller a heartbeat each second. A worker that stays silent "
            "for 5 seconds is taken off the list. The gateway reads that list in the background, "
            "so no request has to wait for the controller."
        ),
        command="python -m controller",
    ),
    Tier(
        name="worker",
        role=(
            "The worker is the tier that runs the model. It uses torch and transformers, answers "
            "many requests at once with continuous batching, and listens on port 21002."
        ),
        port="The worker listens on port 21002.",
        start=(
            "Start a worker with `python -m worker --model-path PATH --model-names NAME`. "
            "It listens on port 21002."
        ),
        failure=(
            "If a worker dies, its heartbeats stop and the controller takes it off the list. The "
            "gateway asks another worker with the same model to carry on."
        ),
        detail=(
            "The worker applies the chat template, turns text into tokens and generates the "
            "answer. Its engine lives in a process of its own and keeps keys and values in paged "
            "blocks, so that many requests share the memory."
        ),
        command="python -m worker --model-path PATH --model-names NAME",
    ),
    Tier(
        name="gateway",
        role=(
            "The gateway is the tier that clients talk to. It offers an OpenAI-compatible API at "
            "http://localhost:8000/v1 and sends each request to a worker."
        ),
        port="The gateway listens on port 8000. The API is at http://localhost:8000/v1.",
        start="Start the gateway with `python -m gateway`. It listens on port 8000.",
        failure=(
            "If the gateway stops, clients cannot reach the models until it is started again. The "
            "controller and the workers keep running."
        ),
        detail=(
            "The gateway checks API keys, validates the request, picks a worker and streams its "
            "answer back. If a worker dies in the middle of an answer, the gateway asks another "
            "one to continue."
        ),
        command="python -m gateway",
    ),
)

# Whole questions that name the tier as @; the role is also asked by the noun phrase "the @".
ABOUT_TIER: dict[str, tuple[str, ...]] = {
    "role": (
        "What does the @ do?",
        "What does the @ do in Trireme?",
        "What is the @ {for|good for|used for}?",
        "What is the {role|job|task|purpose} of the @?",
        "What is the @?",
        "What is the @?",
        "What is a @?",
        "What is a @ {here|in Trireme}?",
        "What is the @ in Trireme?",
        "What's the @?",
        "The @?",
        "Why do I need {the|a} @?",
        "Why is there a @?",
        "Who needs the @?",
        "{Explain|Describe} the @.",
        "{Explain|Describe} the @ {tier|process|server|to me}.",
        "Tell me about the @.",
        "Tell me {about|something about|more about} the @ tier.",
        "Tell me what the @ does.",
        "Can you explain {what the @ does|the @}?",
        "How does the @ work?",
    ),
    "port": (
        "Which port does the @ {use|listen on|have|run on}?",
        "What port does the @ {use|listen on|have|run on}?",
        "What port is the @ on?",
        "Which port is the @ on?",
        "On which port does the @ {run|listen}?",
        "On which port is the @?",
        "What is the port of the @?",
        "What is the @ port?",
        "What is the @'s port?",
        "What is the default port of the @?",
        "{Port of the @|Port for the @|@ port}?",
        "Where does the @ listen?",
        "Where {is|can I find|do I find} the @?",
        "At which address is the @?",
        "Tell me the port of the @.",
        "What is the port number of the @?",
        "Does the @ have a port?",
    ),
    "start": (
        "How do I {start|run|launch} the @?",
        "How do I {start|run|launch} the @?",
        "How can I {start|run|launch|start up} {the|a} @?",
        "How to {start|run|launch} {the|a} @?",
        "How do I start {only|just} the @?",
        "How do I {run|start} the @ {alone|by itself|on its own|by hand|separately}?",
        "{Start|Run|Launch} the @.",
        "What command {starts|runs|launches} the @?",
        "Which command {starts|runs|launches} the @?",
        "What is the command {for|to start} the @?",
        "Command to {start|run|launch} the @?",
        "I want to {start|run|launch} {the|a} @.",
        "Show me how to {start|run|launch} {the|a} @.",
        "How is the @ started?",
        "How do I start a @ {process|server|tier}?",
    ),
    "failure": (
        "What {happens|will happen} {if|when} {the|a} @ {dies|stops|crashes|fails|goes down}?",
        "What if {the|a} @ {dies|stops|crashes|fails|goes down|is down|breaks}?",
        "{The|My} @ {died|crashed|stopped|is down|is dead}.",
        "What happens if I {stop|kill} the @?",
        "What happens when the @ is {gone|lost|dead|killed}?",
        "Can the @ {fail|crash|die}?",
        "Is it bad {if|when} the @ {dies|stops|crashes}?",
    ),
    "detail": (
        "How does the @ work {in detail|inside|internally}?",
        "Give me {more details|details} {on|about} the @.",
        "Explain the @ in {more|} detail.",
        "Tell me more details about the @.",
        "What else does the @ do?",
        "What happens inside the @?",
    ),
}

# Follow-ups that lean on the tier named before ("it") or on the aspect ("and the @?").
ABOUT_IT: dict[str, tuple[str, ...]] = {
    "role": ("What does it do?", "What is it for?", "And what does it do?", "What is its job?"),
    "port": (
        "Which port does it use?",
        "What port does it {use|listen on|run on}?",
        "Which port is it on?",
        "And its port?",
        "And which port?",
        "Which port?",
        "What is its port?",
        "Where does it listen?",
    ),
    "start": (
        "How do I start it?",
        "How do I {run|launch} it?",
        "How can I start it?",
        "And how do I start it?",
        "How do I start one?",
        "What command starts it?",
        "How is it started?",
    ),
    "failure": (
        "What happens if it {dies|stops|crashes|fails}?",
        "What if it {dies|stops|crashes|fails|is down}?",
        "And if it {dies|crashes|fails}?",
        "What happens when it goes down?",
    ),
    "detail": (
        "Tell me more.",
        "Can you tell me more?",
        "More details{|, please}.",
        "How does it work?",
        "Tell me more about it.",
        "Explain it in more detail.",
        "Go on.",
    ),
}
AND_TIER: tuple[str, ...] = (
    "And the @?",
    "And the @?",
    "What about the @?",
    "And what about the @?",
    "How about the @?",
    "The @?",
    "And for the @?",
    "Same question for the @.",
    "Now the @.",
    "Ok, and the @?",
)
