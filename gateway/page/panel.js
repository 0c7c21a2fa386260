// The present form as code.
import { LANGUAGES, codeIn } from "./code.js";
import { html, useState } from "./lib.js";

export function CodePanel({ request }) {
  const [language, setLanguage] = useState("Python");
  const [copied, setCopied] = useState("");
  const text = codeIn(language, request);
  const copy = () =>
    navigator.clipboard.writeText(text).then(
      () => setCopied("Copied."),
      () => setCopied("The browser does not allow it; mark the lines and copy them."),
    );
  return html`<details class="panel">
    <summary>As code</summary>
    <div class="choice" role="group" aria-label="Language">
      ${LANGUAGES.map(
        (name) => html`<button key=${name} type="button" aria-pressed=${name === language}
        onClick=${() => (setLanguage(name), setCopied(""))}>${name}</button>`,
      )}
      <button type="button" class="quiet" onClick=${copy}>Copy</button>
      <span role="status" class="hint">${copied}</span>
    </div>
    <pre tabindex="0" aria-label="Code"><code>${text}</code></pre>
  </details>`;
}
