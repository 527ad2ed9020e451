// props.value is JSON from Python: {address, python, note}. The address bar follows it; nothing is asked of the server.
const find = selector => element.querySelector(selector);
let told = null;

// In a frame without leave to use the clipboard the old way is the one that works.
async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.createElement('textarea');
    area.value = text;
    area.style.cssText = 'position: fixed; opacity: 0';
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    if (!done) { find('details').open = true; find('output').textContent = 'This browser does not allow copying; select the text below.'; return; }
  }
  find('output').textContent = `${what} copied.`;
}

function take(news) {
  told = news;
  find('.again').hidden = !told;
  if (!told) return;
  find('output').textContent = told.note ?? '';
  find('pre').textContent = told.python;
  find('.link').hidden = !told.address;
  if (told.address) window.mfmVisit?.(told.tab, told.address);
}

find('.link').addEventListener('click', () => copy(new URL(told.address, location.href.split(/[?#]/)[0]).href, 'Link'));
find('.code').addEventListener('click', () => copy(told.python, 'Code'));
watch('value', () => take(props.value ? JSON.parse(props.value) : null));
if (props.value) take(JSON.parse(props.value));
