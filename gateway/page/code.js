// The present form as the lines to paste: what the official clients and curl take.

/** A file that lies on the user's machine, or a secret that belongs into the environment. */
class Said {
  constructor(by) {
    this.by = by;
  }
}

const PYTHON = { null: "None", true: "True", false: "False" };

function literal(value, language, indent) {
  if (value instanceof Said) return value.by[language];
  if (value === null || typeof value === "boolean") return language === "python" ? PYTHON[value] : String(value);
  if (Array.isArray(value)) return `[${value.map((each) => literal(each, language, indent)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value);
  if (!entries.length) return "{}";
  const inner = `${indent}${language === "python" ? "    " : "  "}`;
  const named = (name) => (language === "javascript" ? name : JSON.stringify(name));
  const lines = entries.map(([name, each]) => `${inner}${named(name)}: ${literal(each, language, inner)},\n`).join("");
  return `{\n${language === "curl" ? lines.replace(/,\n$/, "\n") : lines}${indent}}`;
}

function mine(name) {
  const text = JSON.stringify(name);
  return new Said({
    python: `open(${text}, "rb")`,
    javascript: `await readFile(${text})`,
    curl: JSON.stringify(`URL of ${name}`),
  });
}

function secret(name) {
  const variable = name.toUpperCase();
  return new Said({
    python: `os.environ["${variable}"]`,
    javascript: `process.env.${variable}`,
    curl: `"'"$${variable}"'"`,
  });
}

/** The input as people write it: their own files by name, secrets from the environment. */
export function spoken(fields, values, input) {
  const said = { ...input };
  for (const { kind, name } of fields) {
    const value = values[name];
    if (!(name in said)) continue;
    if (kind === "secret") said[name] = secret(name);
    else if (value?.uploaded) said[name] = mine(value.name);
    else if (kind === "files") said[name] = value.map((each) => (each.uploaded ? mine(each.name) : each.url));
  }
  return said;
}

const quoted = (text) =>
  text
    .split(/("'"\$\w+"'")/)
    .map((part, index) => (index % 2 ? part : part.replaceAll("'", "'\\''")))
    .join("");

function python({ base, kind, model, version, input, destination }) {
  const training = kind === "training";
  const shown = literal(input, "python", training ? "    " : "");
  return [
    "# pip install replicate",
    `# export REPLICATE_BASE_URL=${base} REPLICATE_API_TOKEN=...`,
    ...(shown.includes("os.environ[") ? ["import os", ""] : []),
    "import replicate",
    "",
    ...(training
      ? [
          "training = replicate.trainings.create(",
          `    version="${model}:${version}",`,
          `    input=${shown},`,
          `    destination="${destination}",`,
          ")",
          "print(training.id)",
        ]
      : [`output = replicate.run("${model}:${version}", input=${shown})`, "print(output)"]),
  ];
}

function javascript({ base, kind, model, version, input, destination }) {
  const training = kind === "training";
  const shown = literal(input, "javascript", training ? "  " : "");
  return [
    "// npm install replicate",
    ...(shown.includes("await readFile(") ? ['import { readFile } from "node:fs/promises";'] : []),
    'import Replicate from "replicate";',
    "",
    "const replicate = new Replicate({",
    `  baseUrl: "${base}/v1",`,
    "  auth: process.env.REPLICATE_API_TOKEN,",
    "});",
    ...(training
      ? [
          `const [owner, name] = ${JSON.stringify(model)}.split("/");`,
          `const training = await replicate.trainings.create(owner, name, "${version}", {`,
          `  destination: "${destination}",`,
          `  input: ${shown},`,
          "});",
          "console.log(training.id);",
        ]
      : [`const output = await replicate.run("${model}:${version}", { input: ${shown} });`, "console.log(output);"]),
  ];
}

function curl({ base, kind, model, version, input, destination }) {
  const training = kind === "training";
  const body = training ? { destination, input } : { version, input };
  const path = training ? `models/${model}/versions/${version}/trainings` : "predictions";
  return [
    `curl -s ${base}/v1/${path} \\`,
    `  -H "Authorization: Bearer $REPLICATE_API_TOKEN" \\`,
    `  -H "Content-Type: application/json" \\`,
    ...(training ? [] : [`  -H "Prefer: wait" \\`]),
    `  -d '${quoted(literal(body, "curl", ""))}'`,
  ];
}

const LINES = { Python: python, JavaScript: javascript, curl };
export const LANGUAGES = Object.keys(LINES);

/** `request`: {base, kind, model, version, input, destination}. */
export const codeIn = (language, request) => LINES[language](request).join("\n");
