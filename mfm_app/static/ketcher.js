// The page inside the frame: starts Ketcher as its widget does in a notebook, and exchanges SMILES with the page.
const post = message => parent.postMessage(message, location.origin);
const sleep = ms => new Promise(done => setTimeout(done, ms));
const DEBOUNCE = 150;
let revision = null, drawn = '';      // of the text drawn last; the drawing as SMILES when last read
let pending = null, queue = Promise.resolve(), timer = null;      // pending: the message whose text is to be drawn
let drawing = 0;      // texts on their way into the structure

// Embedded with storage blocked, reading localStorage throws and Ketcher would not start.
try { localStorage.length; } catch {
  const items = new Map();
  const storage = {
    getItem: key => items.get(key) ?? null, setItem: (key, value) => items.set(key, String(value)),
    removeItem: key => items.delete(key), clear: () => items.clear(),
  };
  Object.defineProperty(window, 'localStorage', { value: storage });
}

// Ketcher focuses its canvas whenever it draws; the focus stays where somebody is typing outside.
const focus = HTMLElement.prototype.focus;
HTMLElement.prototype.focus = function (...options) { if (document.hasFocus()) focus.apply(this, options); };

async function start() {
  const traits = { initial_molecule: '', return_formats: [], height: '100vh' };
  const model = {
    get: name => traits[name], set: (name, value) => { traits[name] = value; },
    on() {}, off() {}, save_changes() {}, send() {},
  };
  const { default: widget } = await import('./widget.js');
  widget.render({ model, el: document.getElementById('editor') });
  while (!window.ketcher) await sleep(30);
  return window.ketcher;
}

// The template under the pointer is part of the structure, though nobody has put it there yet.
const hidePreview = ketcher => ketcher.editor.tool()?.templatePreview?.hidePreview();

// Until the newest text is drawn nobody can draw: it would be on top of an older one.
async function draw(ketcher, message) {
  if (message !== pending) return;      // a later one is drawn instead
  hidePreview(ketcher);
  const smiles = message.draw;
  let problem;
  try {
    await ketcher.indigo.convert(smiles);      // throws where setMolecule would be silent
    ketcher.editor.zoom(1);      // setMolecule zooms out for a large molecule, and never back
    await ketcher.setMolecule(smiles);
  } catch { problem = 'draw'; }
  done(message, await ketcher.getSmiles().catch(() => null), problem);
}

// Nothing is read from the structure here, so that one can draw again at once.
function clear(ketcher, message) {
  if (message !== pending) return;
  hidePreview(ketcher);
  ketcher.editor.zoom(1);
  ketcher.editor.clear();
  done(message, '');
}

function done(message, smiles, problem) {
  drawn = smiles;
  if (message !== pending) return;
  pending = null;
  document.body.inert = false;
  revision = message.revision;
  post({ revision, problem });
}

async function report(ketcher) {
  hidePreview(ketcher);
  const base = revision, smiles = await ketcher.getSmiles().catch(() => null);
  if (pending || base !== revision) return;      // a newer text came meanwhile
  post({ revision, ...smiles === null ? { problem: 'read' } : smiles === drawn ? {} : { smiles } });
  drawn = smiles;
}

try {
  const ketcher = await start();
  // drawn as its own templates are, without a chiral flag
  ketcher.setSettings({ 'general.dearomatize-on-load': true, ignoreChiralFlag: true });
  const enqueue = job => { queue = queue.then(job).catch(() => {}); };      // one at a time, in order
  ketcher.editor.subscribe('change', () => {
    if (pending) return;      // not by hand
    post({ revision, drawing: true });
    clearTimeout(timer);
    timer = setTimeout(() => enqueue(() => report(ketcher)), DEBOUNCE);
  });
  window.addEventListener('message', event => {
    const { source, origin, data } = event;
    if (source !== parent || origin !== location.origin || typeof data.draw !== 'string') return;
    clearTimeout(timer);
    pending = data;
    document.body.inert = true;
    if (!data.draw && !drawing) return clear(ketcher, data);
    drawing += 1;
    enqueue(async () => {
      try { await (data.draw ? draw : clear)(ketcher, data); } finally { drawing -= 1; }
    });
  });
  post({ state: 'ready' });
} catch (error) {
  post({ state: 'failed' });
  throw error;
}
