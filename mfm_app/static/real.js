// Real cells below the viewer, a quiz of real and generated ones, and cells drawn by a mechanism of the verdict, whose
// names can be pressed where they stand, in the card of the molecule. What is asked of the server stands in
// `dataset.ask`; the answer comes as props.value. Which cell is real is not known here until the server reveals it.
const find = selector => element.querySelector(selector);
const viewer = () => document.querySelector('#viewer .viewer');
const [section, rows, quiz, cells] = ['.real', '.rows', '.quiz', '.cells'].map(find);
let run = null, groups = [], asked = null, asks = 0, round = null;      // groups: {planes, sheet, canvases}

function ask(what, more = {}) {
  asked = JSON.stringify({ run, what, count: ++asks, ...more });
  section.dataset.ask = asked;
  section.setAttribute('aria-busy', true);
  trigger('input');
}

function say(text = '') { find('output').textContent = text; }

function canvas(parent, [h, w], label) {
  const made = document.createElement('canvas');
  [made.height, made.width] = [h, w];
  made.setAttribute('role', 'img');
  made.setAttribute('aria-label', label);
  parent.append(made);
  return made;
}

function redraw() {
  const { paint, look } = viewer()?.painter ?? {};
  if (!paint || !groups.length) return;
  const how = look();
  groups.forEach(({ planes, sheet, canvases }) => canvases.forEach((c, i) => paint(c, planes, 0, i, how, sheet)));
}

async function group(sheet, canvases) {
  return { sheet, canvases, planes: await viewer().painter.decoded(sheet.pictures) };
}

function showCells(answer) {
  closeQuiz();
  say(answer.none);
  rows.hidden = !answer.groups.length;
  find('.back').hidden = answer.asked.what !== 'mechanism';
  find('.source').textContent = answer.source;
  find('.source').hidden = rows.hidden || !answer.source;
  const made = answer.groups.map(sheet => {
    const figure = document.createElement('figure'), caption = document.createElement('figcaption');
    const grid = document.createElement('div'), instead = document.createElement('small');
    caption.textContent = `${sheet.caption} `;
    instead.textContent = sheet.instead;
    caption.append(instead);
    figure.append(caption, grid);
    const of = sheet.of ?? 'Real cell';
    const canvases = Array.from({ length: sheet.n }, (_, i) => canvas(grid, sheet.size, `${of} ${i + 1}`));
    return { figure, canvases };
  });
  rows.replaceChildren(...made.map(({ figure }) => figure));
  return Promise.all(answer.groups.map((sheet, i) => group(sheet, made[i].canvases)));
}

function closeQuiz() {
  quiz.hidden = find('.source').hidden = true;
  round = null;
  find('.start').hidden = false;
}

function mark(i) {
  const button = round && !round.revealed && cells.children[i];
  if (button) button.setAttribute('aria-pressed', button.getAttribute('aria-pressed') !== 'true');
  countMarks();
}

const marks = () => [...cells.children].flatMap((b, i) => b.getAttribute('aria-pressed') === 'true' ? [i] : []);

function countMarks() {
  if (!round || round.revealed) return;
  say(`${marks().length} marked`);
  find('.reveal').disabled = !marks().length;
}

function showQuiz(answer) {
  round = { n: answer.n, revealed: false };
  rows.hidden = find('.source').hidden = find('.back').hidden = true;
  beside(false);
  quiz.hidden = false;
  find('.start').hidden = true;
  find('.task').textContent = answer.task;
  find('.score').textContent = '';
  find('.reveal').hidden = false;
  find('.again').hidden = true;
  const canvases = [], buttons = Array.from({ length: answer.n }, (_, i) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.setAttribute('aria-pressed', false);
    button.setAttribute('aria-label', `Cell ${i + 1}`);
    canvases.push(canvas(button, answer.size, ''));
    canvases[i].setAttribute('aria-hidden', true);
    button.append(Object.assign(document.createElement('span'), { textContent: i + 1 }));
    button.addEventListener('click', () => mark(i));
    return button;
  });
  cells.replaceChildren(...buttons);
  countMarks();
  buttons[0].focus({ preventScroll: true });
  return Promise.all([group(answer, canvases)]);
}

function reveal({ real, score, about }) {
  round.revealed = true;
  [...cells.children].forEach((button, i) => {
    const marked = button.getAttribute('aria-pressed') === 'true', what = real[i] ? 'real' : 'generated';
    button.lastChild.textContent = `${marked === real[i] ? '✓' : '✗'} ${what}`;
    button.setAttribute('aria-label', `Cell ${i + 1}: ${what}, ${marked === real[i] ? 'right' : 'wrong'}`);
    button.disabled = true;
  });
  say();
  find('.score').textContent = score;
  find('.source').textContent = about;
  find('.source').hidden = false;
  find('.reveal').hidden = true;
  find('.again').hidden = false;
  find('.again').focus({ preventScroll: true });
}

async function load(answer) {
  if (JSON.stringify(answer.asked) !== asked) return;      // something else was asked since
  section.removeAttribute('aria-busy');
  if (answer.real) return reveal(answer);
  const made = answer.groups ? showCells(answer) : answer.n ? showQuiz(answer) : [];
  if (answer.problem) say(answer.problem);
  groups = await made;
  redraw();
}

// Whether real cells stand beside is a part of the address and of the code, see page.js and share.js.
function beside(on) {
  find('.on').checked = on;
  window.mfmLook?.();
  window.dispatchEvent(new Event('mfm-real'));
}

function cellsAgain() {
  if (find('.on').checked) return ask('cells');
  rows.hidden = find('.source').hidden = find('.back').hidden = true;
  say();
}

find('.on').addEventListener('change', ({ target }) => { beside(target.checked); cellsAgain(); });
find('.back').addEventListener('click', cellsAgain);
const play = () => { say('Cells are generated for this round…'); ask('quiz'); };
find('.start').addEventListener('click', play);
find('.again').addEventListener('click', play);
find('.reveal').addEventListener('click', () => ask('reveal', { marked: marks() }));
find('.close').addEventListener('click', () => { closeQuiz(); say(); find('.start').focus({ preventScroll: true }); });
quiz.addEventListener('keydown', event => {
  const i = [...cells.children].indexOf(document.activeElement);
  const across = [...cells.children].filter(cell => cell.offsetTop === cells.children[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (/^[1-9]$/.test(event.key) && !event.ctrlKey && !event.altKey && !event.metaKey) mark(event.key - 1);
  else if (step && i >= 0) cells.children[(i + step + round.n) % round.n].focus();
  else return;
  event.preventDefault();
});
window.addEventListener('mfm-run', ({ target, detail }) => {
  if (!target.closest?.('#viewer')) return;
  run = detail;
  groups = [];
  section.removeAttribute('aria-busy');
  section.hidden = false;
  closeQuiz();
  rows.replaceChildren();
  cellsAgain();
});
window.addEventListener('mfm-channels', redraw);
watch('value', () => { if (props.value) load(JSON.parse(props.value)); });

find('label').hidden = find('.start').hidden = !crops;
const address = new URLSearchParams(location.search);
find('.on').checked = crops && address.get('real') === '1' && [null, 'explore'].includes(address.get('tab'));

// The names of mechanisms in the card of the molecule, which may come later, become buttons.
const named = '#molecule-card .mechanisms > li:not(:last-child) > span:first-child';

function offer() {
  document.querySelectorAll(`${named}:not([role])`).forEach(name => {
    Object.assign(name, { tabIndex: 0, title: 'Show how the model draws this mechanism' });
    name.setAttribute('role', 'button');
  });
}

function drawMechanism(event) {
  const name = event.target.closest?.(named);
  if (!name || (event.key && !['Enter', ' '].includes(event.key))) return;
  event.preventDefault();
  section.hidden = false;
  if (!run) return say('Press Generate first.');
  say('Cells are generated…');
  const molecule = document.querySelector('#molecule-card code').textContent;
  ask('mechanism', { name: name.textContent, molecule });
  section.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
}

offer();
new MutationObserver(offer).observe(document.body, { childList: true, subtree: true });
for (const kind of ['click', 'keydown']) document.addEventListener(kind, drawMechanism);
