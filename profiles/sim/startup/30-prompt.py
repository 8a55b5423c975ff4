"""What greets whoever sits at the prompt."""

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
