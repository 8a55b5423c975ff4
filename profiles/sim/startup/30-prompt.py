"""What greets whoever sits at the prompt, and the end of the session's beginning."""

from bluesky_cdi.memory import keep_loaded
from bluesky_cdi.prompt import at_prompt

at_prompt(
    session,
    {
        "RE(adaptive(budget=120))": "an adaptive scan, reconstructed live",
        "RE(fly())": "a fly scan of the whole window",
        "show()": "draw the newest result",
        "list_results(catalog)": "what the catalog holds",
    },
    title="the simulated beamline",
)

# Collections of garbage would hold scans up for some tenths of a second each.
keep_loaded()
