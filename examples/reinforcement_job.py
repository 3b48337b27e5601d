"""A reinforcement job with the stock OpenAI client: file, grader, job, and the model that it makes.

Needs `bmt-server serve --files FOLDER`, and `bmt-train worker --max-new-tokens 16 …` at work.

BMT_API_KEY=... python examples/reinforcement_job.py http://127.0.0.1:8000 smol
"""

import itertools
import json
import os
import random
import sys
import time

from openai import OpenAI

url, base = sys.argv[1:3]
most, rows = (int(n) for n in sys.argv[3:] or (30, 320))
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ["BMT_API_KEY"])
answer = {"input": "{{ sample.output_text }}", "reference": "{{ item.sum }}"}
right = {"type": "string_check", "name": "right", "operation": "like", **answer}
grader = {"type": "multi", "name": "right, and nothing else"}
grader["graders"] = {"right": right, "exact": {**right, "name": "exact", "operation": "eq"}}
grader["calculate_output"] = "0.5 * right + 0.5 * exact"


def ask(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {a} + {b}? Answer with the number only."}]


pairs = random.Random(0).sample(list(itertools.product(range(1, most + 1), repeat=2)), rows)
lines = [json.dumps({"messages": ask(a, b), "sum": str(a + b)}) + "\n" for a, b in pairs]
file = client.files.create(file=("sums.jsonl", "".join(lines).encode()), purpose="fine-tune")
settings = {"grader": grader, "hyperparameters": {"n_epochs": 1, "batch_size": 8}}
method = {"type": "reinforcement", "reinforcement": settings}
job = client.fine_tuning.jobs.create(model=base, training_file=file.id, seed=0, method=method)
while job.status in ("queued", "running"):
    time.sleep(2)
    newest = client.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
    print(newest.message, flush=True)
    job = client.fine_tuning.jobs.retrieve(job.id)
if job.status != "succeeded":
    sys.exit(f"{job.id} {job.status}: {job.error.message if job.error else ''}")
reply = client.chat.completions.create(model=job.fine_tuned_model, messages=ask(7, 8))
print(f"{job.fine_tuned_model}: {reply.choices[0].message.content}")
