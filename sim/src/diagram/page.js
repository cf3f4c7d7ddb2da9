'use strict';
const $ = id => document.getElementById(id), detail = $('detail'), heads = $('heads'), scroll = $('scroll'), about = $('about');
const all = [...detail.querySelectorAll('.e')], words = all.map(e => e.querySelector('title').textContent);
const width = detail.viewBox.baseVal.width, height = detail.viewBox.baseVal.height;
let zoom = 1, hits = [], here = -1, kept = null;
function setZoom(to) {
  const middle = (scroll.scrollTop + scroll.clientHeight / 2) / zoom;
  zoom = Math.min(4, Math.max(0.15, to));
  for (const [svg, tall] of [[detail, height], [heads, 22]]) {
    svg.setAttribute('width', width * zoom);
    svg.setAttribute('height', tall * zoom);
  }
  scroll.scrollTop = middle * zoom - scroll.clientHeight / 2;
}
function show(e) {
  const box = e.getBBox(), top = (box.y + box.height / 2) * zoom, left = box.x * zoom;
  scroll.scrollTop = top - scroll.clientHeight / 2;
  scroll.scrollLeft = Math.max(0, left - scroll.clientWidth / 3);
}
function find() {
  const text = $('find').value.trim().toLowerCase();
  for (const e of all) e.classList.remove('hit', 'here');
  hits = text ? all.filter((e, i) => words[i].toLowerCase().includes(text)) : [];
  hits.sort((a, b) => a.getBBox().y - b.getBBox().y);
  for (const e of hits) e.classList.add('hit');
  detail.classList.toggle('searching', text !== '');
  here = -1;
  $('found').textContent = text ? hits.length + ' found' : '';
}
function go(by) {
  if (!hits.length) return;
  if (here >= 0) hits[here].classList.remove('here');
  here = here < 0 && by < 0 ? hits.length - 1 : (here + by + hits.length) % hits.length;
  hits[here].classList.add('here');
  about.textContent = hits[here].querySelector('title').textContent;
  $('found').textContent = (here + 1) + ' of ' + hits.length;
  show(hits[here]);
}
$('find').oninput = find;
$('find').onkeydown = event => { if (event.key === 'Enter') go(event.shiftKey ? -1 : 1); };
$('next').onclick = () => go(1);
$('prev').onclick = () => go(-1);
$('in').onclick = () => setZoom(zoom * 1.25);
$('out').onclick = () => setZoom(zoom / 1.25);
$('fit').onclick = () => setZoom(scroll.clientWidth / width);
scroll.addEventListener('wheel', event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(zoom * (event.deltaY < 0 ? 1.1 : 1 / 1.1));
}, { passive: false });
for (const box of document.querySelectorAll('[data-class]')) {
  box.onchange = () => { for (const e of all) if (e.classList.contains(box.dataset.class)) e.style.display = box.checked ? '' : 'none'; };
}
detail.onmouseover = event => {
  const e = event.target.closest('.e');
  if (e && !kept) about.textContent = e.querySelector('title').textContent;
};
detail.onclick = event => {
  const e = event.target.closest('.e');
  if (kept) kept.classList.remove('kept');
  kept = e === kept ? null : e;
  if (kept) { kept.classList.add('kept'); about.textContent = kept.querySelector('title').textContent; }
};
if ($('failure')) $('failure').onclick = () => show($('violation'));
if (width > scroll.clientWidth) setZoom(Math.max(0.6, scroll.clientWidth / width));
scroll.scrollTop = scroll.scrollHeight;
