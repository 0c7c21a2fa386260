// What a training has changed, and how it went, out of its result: only these parts of the archive are fetched.
import { shown } from "./api.js";
import { content, entries } from "./archives.js";
import { html, useEffect, useState } from "./lib.js";

const GRID = "samples.png";
const REPORT = "training_report.json";

/** {grid: URL of a picture or null, losses: [[step, loss], ...]} of a trained archive; null until it is known. */
export function useResult(url) {
  const [result, setResult] = useState(null);
  useEffect(() => {
    if (!url || url.startsWith("data:")) return undefined;
    let made = null;
    let gone = false;
    async function read() {
      const listed = await entries(shown(url));
      const part = async (name, type) => {
        const entry = listed.find((each) => each.name === name);
        return entry ? content(shown(url), entry, type) : null;
      };
      const [grid, report] = [await part(GRID, "image/png"), await part(REPORT, "application/json")];
      if (gone) return;
      made = grid && URL.createObjectURL(grid);
      const told = report ? (JSON.parse(await report.text()).losses ?? []) : [];
      setResult({ grid: made, losses: told.map((loss, index) => [index + 1, loss ?? NaN]) });
    }
    read().catch(() => setResult({ grid: null, losses: [] })); // the result itself can still be downloaded
    return () => {
      gone = true;
      if (made) URL.revokeObjectURL(made);
    };
  }, [url]);
  return result;
}

export function Samples({ url }) {
  return html`<figure class="samples">
    <img src=${url} alt="Samples: what was trained on, and the same prompts and seeds before and after" />
    <figcaption>Trained on; the same prompts and seeds before; after.</figcaption>
  </figure>`;
}
