// Files as inputs: chosen, dropped or pasted by URL; sent at once, so that the form holds their addresses.
import { ours, shown, upload } from "./api.js";
import { zip } from "./archives.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { fileName } from "./schema.js";

const ARCHIVE = /\.(zip|tar|tgz|tar\.gz)$/i;
const BESIDE = ".txt,.csv,.jsonl"; // captions

const IDLE = { share: null, error: "" };

/** Sends files to the gateway: [how far it is, send, forget]. Only what was asked for last comes into the form. */
function useSending(set) {
  const [state, setState] = useState(IDLE);
  const turn = useRef(0);
  const forget = () => (turn.current++, setState(IDLE), set(""));
  useEffect(() => () => void turn.current++, []);
  async function send(make) {
    const mine = ++turn.current;
    const tell = (share, error, ...value) => {
      if (mine !== turn.current) return;
      setState({ share, error });
      value.forEach(set);
    };
    tell(0, "", { pending: true });
    try {
      const value = await make((share) => tell(share, ""));
      tell(null, "", value);
    } catch (error) {
      tell(null, error.message, "");
    }
  }
  return [state, send, forget];
}

async function sent(file, progress) {
  const kept = await upload(file, progress);
  const preview = file.type.startsWith("image/") ? URL.createObjectURL(file) : null;
  return { url: kept.urls.get, name: file.name, preview, uploaded: true };
}

/** A place that takes files, by choosing or dropping. The button that people see is the input's own label. */
function Drop({ given, accept, multiple, take, children, share }) {
  const [over, setOver] = useState(false);
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  };
  const hover = (event) => {
    event.preventDefault();
    setOver(event.type === "dragover");
  };
  return html`<div class=${`drop ${over ? "over" : ""}`} onDragOver=${hover} onDragLeave=${hover} onDrop=${drop}>
    <input ...${given} required=${null} type="file" accept=${accept} multiple=${multiple}
      onChange=${(event) => (take([...event.target.files]), (event.target.value = ""))} />
    ${children}
    ${share !== null && html`<progress aria-label="Sending" value=${share} max="1" />`}
  </div>`;
}

const previewOf = (value) =>
  value.preview ?? (ours(value.url) && /\.(png|jpe?g|webp|gif|avif)$|^data:image/i.test(value.url) ? shown(value.url) : null);

function Held({ value, remove }) {
  const preview = previewOf(value);
  return html`<div class="held">
    ${preview && html`<img src=${preview} alt="" />`}
    <span class="name">${value.name}</span>
    <button type="button" class="quiet" onClick=${remove} aria-label=${`Remove ${value.name}`}>Remove</button>
  </div>`;
}

/** One file, or the URL of one. */
export function FileControl({ field, value, set, given }) {
  const [{ share, error }, send] = useSending(set);
  const [url, setUrl] = useState("");
  const use = () => url.trim() && set({ url: url.trim(), name: fileName(url.trim()) });
  if (value.url) return html`<${Held} value=${value} remove=${() => set("")} />`;
  return html`<${Drop} given=${given} accept=${field.accept} share=${share} take=${([file]) => send((progress) => sent(file, progress))}>
    <input type="url" class="address" placeholder="or a URL" aria-label=${`URL of ${field.label}`} value=${url}
      onInput=${(event) => setUrl(event.target.value)} onBlur=${use}
      onKeyDown=${(event) => event.key === "Enter" && (event.preventDefault(), use())} />
    ${error && html`<p class="error">${error}</p>`}
  <//>`;
}

/** Several pictures, sent as one archive (or each by itself if `separate`), or an archive as it is. */
export function PicturesControl({ field, value, set, given, separate = false }) {
  const [files, setFiles] = useState([]);
  const [{ share, error }, send, forget] = useSending(set);
  function take(chosen) {
    const whole = chosen.find((file) => ARCHIVE.test(file.name));
    const named = new Map([...(whole ? [] : files), ...(whole ? [whole] : chosen)].map((file) => [file.name, file]));
    hold([...named.values()]);
  }
  function hold(kept) {
    setFiles(kept);
    if (!kept.length) return forget();
    send(async (progress) => {
      if (separate) return Promise.all(kept.map((file) => sent(file, progress)));
      const archive = ARCHIVE.test(kept[0].name) ? kept[0] : await zip(kept, "pictures.zip");
      return sent(archive, progress);
    });
  }
  const held = files.length || value.pending ? [] : [value].flat().filter(Boolean);
  if (held.length)
    return held.map(
      (each) =>
        html`<${Held} key=${each.url} value=${each} remove=${() => set(separate ? held.filter((other) => other !== each) : "")} />`,
    );
  const accept = separate ? field.accept : `image/*,.zip,.tar,.tgz,.gz,${BESIDE}`;
  return html`<${Drop} given=${given} accept=${accept} multiple=${true} take=${take} share=${share}>
    <p class="hint">${separate ? "Drop files here." : "Drop pictures here, or one .zip or .tar of them."}</p>
    <${Thumbnails} files=${files} remove=${(file) => hold(files.filter((each) => each !== file))} />
    ${error && html`<p class="error">${error}</p>`}
  <//>`;
}

function Thumbnails({ files, remove }) {
  if (!files.length) return null;
  return html`<ul class="thumbnails">${files.map((file) => html`<${Thumbnail} key=${file.name} file=${file} remove=${remove} />`)}</ul>`;
}

function Thumbnail({ file, remove }) {
  const [url, setUrl] = useState(null);
  useEffect(() => {
    if (!file.type.startsWith("image/")) return undefined;
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  return html`<li>
    ${url ? html`<img src=${url} alt=${file.name} />` : html`<span class="name">${file.name}</span>`}
    <button type="button" class="quiet" onClick=${() => remove(file)} aria-label=${`Remove ${file.name}`}>×</button>
  </li>`;
}
