"""Print the manifest's JSON Schema: `python -m inferlab.records > data/schema.json`."""

import json

from inferlab.records.schema import manifest_json_schema

print(json.dumps(manifest_json_schema(), indent=2, sort_keys=True))
