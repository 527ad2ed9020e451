// props.value is a SMILES, set by Python or by drawing. Ketcher lives in an iframe and starts when first seen.
// What Python sets while the editor is hidden waits until it is seen: a drawing made unseen comes out as a speck.
const find = selector => element.querySelector(selector);
const box = find('.editor'), frame = find('iframe'), waiting = find('.waiting'), note = find('.note');
let ready = false, seen = false, agreed = '', timer = null;      // agreed: the SMILES that both sides know

const troubles = {
  draw: 'The editor cannot draw this SMILES.',
  read: 'This drawing cannot be written as a SMILES; the last one that could be is kept.',
};

function fail() {
  box.classList.add('failed');
  waiting.textContent = 'The editor did not start; type a SMILES instead.';
}

function start() {
  if (!ketcher) return fail();
  timer = setTimeout(fail, 60000);
  frame.src = `${window.gradio_config.root}/gradio_api/file=${ketcher}/ketcher.html`;
}

function draw() {
  const smiles = props.value || '';
  if (!ready || !seen || smiles === agreed) return;
  agreed = smiles;
  frame.contentWindow.postMessage({ draw: smiles }, location.origin);
}

function listen(event) {
  if (!element.isConnected) return window.removeEventListener('message', listen);
  if (event.source !== frame.contentWindow || event.origin !== location.origin) return;
  const { state, smiles, trouble } = event.data;
  if (state) clearTimeout(timer);
  if (state === 'failed') return fail();
  if (state === 'ready') {
    ready = true;
    box.classList.remove('failed');
    frame.hidden = false;
    waiting.hidden = true;
    draw();
  }
  note.textContent = troubles[trouble] || '';
  if (typeof smiles !== 'string' || smiles === agreed) return;
  agreed = props.value = smiles;
  trigger('input');
}

window.addEventListener('message', listen);
new IntersectionObserver(entries => {
  seen = entries.at(-1).isIntersecting;
  if (seen && !frame.src) start();
  draw();
}).observe(box);
watch('value', draw);
