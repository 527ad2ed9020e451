// A brought image with a ring round each nucleus; which are chosen is the value that goes back.
const find = selector => element.querySelector(selector);
let said = null, taken = new Set();

const chosen = () => [...taken].sort((a, b) => a - b);

function hold() { props.value = JSON.stringify({ chosen: chosen() }); }
function tell() { hold(); trigger('input'); }

function mark() {
  element.querySelectorAll('.nuclei button').forEach((ring, i) => ring.setAttribute('aria-pressed', taken.has(i)));
  find('.choose output').textContent = `${taken.size} of ${said.nuclei.length} nuclei taken`;
}

function ring([y, x], i) {
  const button = document.createElement('button');
  button.type = 'button';
  button.setAttribute('aria-label', `Nucleus ${i + 1}`);
  button.title = `Nucleus ${i + 1}`;
  Object.assign(button.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * said.nucleus[1]}%`, height: `${100 * said.nucleus[0]}%` });
  button.addEventListener('click', () => {
    if (taken.has(i)) taken.delete(i); else if (taken.size < said.most) taken.add(i);
    mark();
    tell();
  });
  return button;
}

function lightRow(row) {
  const line = document.createElement('tr');
  line.replaceChildren(...row.map(text => Object.assign(document.createElement('td'), { textContent: text })));
  return line;
}

function load(fresh) {
  const same = said && fresh && ['picture', 'nuclei', 'nucleus'].every(key => `${said[key]}` === `${fresh[key]}`);      // then what is chosen here is newer
  if (fresh && !same) taken = new Set(fresh.chosen);
  said = fresh;
  find('.hint').hidden = !!said;
  find('.found').hidden = !said;
  if (!said) return;
  find('.whole figcaption').textContent = said.title;
  find('.whole img').src = said.picture;
  const many = said.nuclei.length > 1;
  if (!same) find('.nuclei').replaceChildren(...(many ? said.nuclei.map(ring) : []));      // a ring keeps the focus
  find('.choose').hidden = !many;
  find('.before').src = said.before;
  find('.after').src = said.after;
  find('.after-title').textContent = said.matched ? 'As the model is given them, light matched' : 'As the model is given them, light left alone';
  find('.light tbody').replaceChildren(...said.light.map(lightRow));
  find('.notes').replaceChildren(...said.notes.map(note => Object.assign(document.createElement('li'), { textContent: note })));
  mark();
  if (`${chosen()}` === `${said.chosen}`) hold(); else tell();      // else it was chosen while the answer was on its way
}

find('.all').addEventListener('click', () => { taken = new Set(said.nuclei.slice(0, said.most).keys()); mark(); tell(); });
find('.none').addEventListener('click', () => { taken.clear(); mark(); tell(); });
watch('value', () => {
  const fresh = props.value ? JSON.parse(props.value) : null;
  if (fresh && !fresh.picture) return;
  load(fresh);
});
load(null);
