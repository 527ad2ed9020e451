// The page inside the frame: starts Ketcher as its widget does in a notebook, and speaks SMILES with the page around it.
const say = message => parent.postMessage(message, location.origin);
const later = ms => new Promise(done => setTimeout(done, ms));
const DEBOUNCE = 150;
let drawn = '', wanted = null, turn = Promise.resolve(), timer = null;      // drawn: the SMILES of the drawing when last looked at

// Embedded with storage blocked, reading localStorage throws and Ketcher would not start.
try { localStorage.length; } catch {
  const kept = new Map();
  const stand = { getItem: k => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, String(v)), removeItem: k => kept.delete(k), clear: () => kept.clear() };
  Object.defineProperty(window, 'localStorage', { value: stand });
}

// Ketcher focuses its canvas whenever it draws; that must not take the reader away from the text being typed outside.
const focus = HTMLElement.prototype.focus;
HTMLElement.prototype.focus = function (...how) { if (document.hasFocus()) focus.apply(this, how); };

async function started() {
  const told = { initial_molecule: '', return_formats: [], height: '100vh' };
  const model = { get: name => told[name], set: (name, value) => { told[name] = value; }, on() {}, off() {}, save_changes() {}, send() {} };
  const { default: widget } = await import('./widget.js');
  widget.render({ model, el: document.getElementById('editor') });
  while (!window.ketcher) await later(30);
  return window.ketcher;
}

async function draw(ketcher, smiles) {
  try {
    await ketcher.indigo.convert(smiles);      // throws where setMolecule would be silent
    ketcher.editor.zoom(1);                    // setMolecule zooms out for a large molecule, and never back
    await ketcher.setMolecule(smiles);
    say({});
  } catch { say({ trouble: 'draw' }); }
  drawn = await ketcher.getSmiles().catch(() => null);
}

async function report(ketcher) {
  try {
    const smiles = await ketcher.getSmiles();
    if (smiles !== drawn) say({ smiles });
    drawn = smiles;
  } catch {
    drawn = null;
    say({ trouble: 'read' });
  }
}

try {
  const ketcher = await started();
  ketcher.setSettings({ 'general.dearomatize-on-load': true, ignoreChiralFlag: true });      // drawn as its own templates are, without a flag
  const next = job => { turn = turn.then(job).catch(() => {}); };      // one at a time, in the order they came
  ketcher.editor.subscribe('change', () => {
    clearTimeout(timer);
    timer = setTimeout(() => next(() => report(ketcher)), DEBOUNCE);
  });
  window.addEventListener('message', event => {
    if (event.source !== parent || event.origin !== location.origin || typeof event.data.draw !== 'string') return;
    wanted = event.data.draw;
    next(() => {
      if (wanted === null) return;      // a later one was drawn instead
      const smiles = wanted;
      wanted = null;
      return draw(ketcher, smiles);
    });
  });
  say({ state: 'ready' });
} catch (error) {
  say({ state: 'failed' });
  throw error;
}
