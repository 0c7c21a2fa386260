// A version's OpenAPI document -> the fields of a form, and what is in them -> the input of a request.

const COMPONENT = { prediction: "Input", training: "TrainingInput" };

// What people reach for, in this order; all else is folded away below, in groups. A model that has none of these shows
// its first inputs.
const USUAL = {
  prediction:
    "prompt negative_prompt aspect_ratio num_outputs num_inference_steps guidance_scale width height image mask prompt_strength seed".split(
      " ",
    ),
  training: "input_images token_string caption_prefix max_train_steps resolution lora_rank seed".split(" "),
};
const FIRST = 8;
const GROUPS = [
  ["Refiner", /refine|high_noise|aesthetic/],
  ["Fine-tuned weights", /^(replicate_weights|lora_scales?|lora_weights|token_pooling|few_step)$|api_token$/],
  [
    "Learning",
    /_lr$|^lr_|learning_rate|lora_|pivot|optimizer|grad|snr|noise_offset|dropout|ema|epochs|batch|is_lora|num_tokens/,
  ],
  ["Pictures to learn from", /mask_target|crop_based|face|clipseg|buckets|filetype|class_|prior_loss|verbose/],
  ["Checkpoints and samples", /checkpoint|sample|resume/],
  ["Mask", /^mask_/],
  ["Output", /^output_|watermark|safety|embed/],
  ["Guidance and speed", /guidance|cache|quantization|clip_skip|scheduler/],
  ["Sizes that SDXL is told", /_size$|^crop_|_crop_/],
  ["More", /./],
];

/** Whether this version can be run, or trained from. */
export const does = (document, kind) => Boolean(document?.components?.schemas?.[COMPONENT[kind]]?.properties);

/** Fields in their order: {name, label, help, kind, of, whole, least, most, choices, initial, required, accept, usual, group}. */
export function fieldsOf(document, kind) {
  const schemas = document.components.schemas;
  const { properties, required = [] } = schemas[COMPONENT[kind]];
  const sorted = Object.entries(properties).sort(([, a], [, b]) => (a["x-order"] ?? 0) - (b["x-order"] ?? 0));
  const known = sorted.some(([name]) => USUAL[kind].includes(name));
  const fields = sorted.map(([name, property], index) => ({
    ...described(name, resolved(property, schemas)),
    required: required.includes(name),
    usual: required.includes(name) || (known ? USUAL[kind].includes(name) : index < FIRST),
    group: GROUPS.find(([, names]) => names.test(name))[0],
  }));
  const place = ({ name }) => USUAL[kind].indexOf(name) >>> 0; // -1 becomes the last
  return known ? fields.sort((a, b) => place(a) - place(b)) : fields;
}

function resolved(property, schemas) {
  const references = [property, ...(property.allOf ?? []), ...(property.anyOf ?? [])].filter((each) => each.$ref);
  return Object.assign({}, ...references.map((each) => schemas[each.$ref.split("/").pop()]), property);
}

function described(name, property) {
  const help = property.description ?? "";
  const initial = property.default ?? null;
  const kind = kindOf(name, property, help);
  return {
    name,
    label: name
      .replace(/^num_/, "")
      .replaceAll("_", " ")
      .replace(/^./, (letter) => letter.toUpperCase()),
    help,
    kind,
    of: property.items?.type,
    whole: property.type === "integer",
    least: property.minimum ?? null,
    most: property.maximum ?? null,
    choices: property.enum ?? [],
    initial: kind === "secret" ? null : initial,
    accept: property["x-cog-accept"] ?? (/picture|image|mask/i.test(name + help) ? "image/*" : ""),
  };
}

function kindOf(name, property, help) {
  if (property.enum) return "choice";
  if (property.type === "boolean") return "switch";
  if (property.type === "array") return property.items?.format === "uri" ? "files" : "list";
  if (property.type === "integer" || property.type === "number") return "number";
  if (property["x-cog-secret"] || property.format === "password") return "secret";
  if (property.format === "uri") return /\.(zip|tar)\b/.test(help) ? "archive" : "file";
  return /prompt|caption|text/.test(name) ? "long" : "text";
}

/** A slider helps where its range is small and the default is not lost at its end. */
export function slides({ kind, whole, least, most, initial }) {
  if (kind !== "number" || least === null || most === null || initial === null) return false;
  const range = most - least;
  return range <= 1000 && (!whole || range > 1) && (initial === least || initial - least >= range / 500);
}

/** Of a slider: 1 for integers, else about a hundredth of the range. */
export const stepOf = ({ whole, least, most }) => (whole ? 1 : 10 ** Math.round(Math.log10((most - least) / 100)));

/** Values that a form begins with, or goes back to with `input` of an earlier job. */
export function valuesOf(fields, input = {}) {
  const values = {};
  for (const field of fields) {
    const given = input[field.name];
    const secret = field.kind === "secret"; // the API does not show what it was
    values[field.name] = given == null || secret ? blank(field) : shownAs(field, given);
  }
  return values;
}

const blank = (field) =>
  field.initial === null ? (field.kind === "switch" ? false : "") : shownAs(field, field.initial);

function shownAs(field, value) {
  if (field.kind === "list") return value.join("\n");
  if (field.kind === "files") return value.map((url) => ({ url, name: fileName(url) }));
  if (field.kind === "file" || field.kind === "archive") return { url: value, name: fileName(value) };
  return value;
}

export function fileName(url) {
  if (url.startsWith("data:")) return "file";
  return decodeURIComponent(url.split(/[?#]/)[0].split("/").pop());
}

/** What a request sends: every value that is not the default, in the types of the schema. */
export function inputOf(fields, values) {
  const input = {};
  for (const field of fields) {
    const value = sent(field, values[field.name]);
    const same = JSON.stringify(value) === JSON.stringify(field.initial);
    if (value !== null && (!same || field.required || field.name === "prompt")) input[field.name] = value;
  }
  return input;
}

function sent(field, value) {
  if (value === "" && ["text", "long"].includes(field.kind)) return field.initial === null ? null : "";
  if (value === "" || value == null) return null;
  if (field.kind === "number") return Number(value);
  if (field.kind === "file" || field.kind === "archive") return value.url ?? null;
  if (field.kind === "files") return value.length ? value.map((each) => each.url) : null;
  if (field.kind !== "list") return value;
  const lines = value
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  return lines.map((line) => (field.of === "string" ? line : Number(line)));
}
