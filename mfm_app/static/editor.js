// props.value is the SMILES drawn last, at first that of the text field. Ketcher lives in an iframe and starts when
// first visible. The field's text goes into it with its revision, and a drawing comes back with the revision of the
// text it was drawn on: one drawn on an older text is not taken. Text set while the editor is hidden waits until it
// is visible: a drawing made unseen comes out as a speck.
const find = selector => element.querySelector(selector);
const section = find('.editor'), frame = find('iframe'), waiting = find('.waiting'), note = find('.note');
const revision = () => window.mfmRevisions.of(textField);
let ready = false, visible = false, timer = null, noteTimer = null;
let sent = null, agreed = null;      // revisions: of the text sent into the frame last, and of what both sides show

const problems = {
  draw: 'The editor cannot draw this SMILES.',
  read: 'The editor cannot write this drawing as SMILES.',
};

function fail() {
  section.classList.add('failed');
  waiting.textContent = 'The editor did not start; type a SMILES instead.';
}

function start() {
  timer = setTimeout(fail, 60000);
  frame.hidden = true;
  frame.src = `${window.gradio_config.root}/gradio_api/file=${ketcher}/ketcher.html`;
}

function showProblem(problem) {
  clearTimeout(noteTimer);      // half a SMILES is no problem yet
  noteTimer = setTimeout(() => { note.textContent = problems[problem] || ''; }, problem ? 600 : 0);
}

function draw() {
  if (!ready || !visible || agreed === revision()) return;
  const smiles = window.mfmRevisions.value(textField, props.value) || '';
  agreed = revision();
  if (smiles.length > maxLength) return showProblem('draw');
  sent = agreed;
  section.setAttribute('aria-busy', true);
  const message = { data: { draw: smiles, revision: sent }, origin: location.origin, source: window };
  // dispatched, not posted: until it arrives one could draw on an older text
  frame.contentWindow.dispatchEvent(new MessageEvent('message', message));
}

function listen(event) {
  if (!element.isConnected) return window.removeEventListener('message', listen);
  if (event.source !== frame.contentWindow || event.origin !== location.origin) return;
  const { state, revision: base, drawing, smiles, problem } = event.data;
  if (state) clearTimeout(timer);
  if (state === 'failed') return fail();
  if (state === 'ready') {
    ready = true;
    agreed = null;
    section.classList.remove('failed');
    frame.hidden = false;
    waiting.hidden = true;
    return draw();
  }
  if (base !== sent || agreed !== revision()) return;      // a newer text is on its way into the frame
  section.setAttribute('aria-busy', false);
  window.mfmRevisions.pending(textField, Boolean(drawing));
  showProblem(problem);
  if (typeof smiles !== 'string') return;
  agreed = window.mfmRevisions.next();
  window.mfmRevisions.set(textField, props.value = smiles, agreed);
  trigger('input');
}

function follow(event) {
  if (!element.isConnected) return window.removeEventListener('mfm-revision', follow);
  if (event.detail === textField) draw();
}

window.addEventListener('message', listen);
window.addEventListener('mfm-revision', follow);
new IntersectionObserver(entries => {
  visible = entries.at(-1).isIntersecting;
  if (visible && !frame.src) start();
  draw();
}).observe(section);
